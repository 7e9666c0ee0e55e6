"""What a run needs of devices that are not here: compiled for them, or estimated, before anyone books them."""
