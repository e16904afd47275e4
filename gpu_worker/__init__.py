"""The GPU worker: takes jobs, runs an engine, writes the frames of the sessions whose generation it holds."""
