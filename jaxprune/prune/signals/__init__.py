"""What a document can be ranked by beside the reference's NLL: one file a signal."""
