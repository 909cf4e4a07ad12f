"""The search: prepare once, run a trial per plan, report. Begin with `trial.py`; `run.py` shows the whole order."""
