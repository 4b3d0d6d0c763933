"""The work behind the API: the answer task, its dispatch, the reaper and the recorder."""
