"""Phase 1 over many images: resumable labeling in one process, several processes or a cluster.

`run` plans and reports; `units` and `steps` are the work; `executors`, `workers` and `ray_executor` say where it is
done; `run_folder` keeps what is done safe.
"""
