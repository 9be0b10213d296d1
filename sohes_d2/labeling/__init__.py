"""Phase 1 over many images: resumable labeling in one process, several processes or a cluster.

`run` plans a run and writes its reports; `units` and `steps` define the work; `executors` and `workers` distribute it;
`run_folder` stores finished work, so that a killed run can be resumed.
"""
