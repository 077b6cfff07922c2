"""Archives as storage: zip and tar files read in place, without unpacking them first."""
