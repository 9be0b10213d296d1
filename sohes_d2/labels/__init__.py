"""Label files: reading and writing of COCO documents, result lists and the shards of this project."""
