"""``v2v-doctor``: whether everything that v2v needs works on this machine, in two minutes and without weights."""
