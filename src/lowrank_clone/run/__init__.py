"""The main job: a recipe checked, executed, exported. Imports everything but the command line."""
