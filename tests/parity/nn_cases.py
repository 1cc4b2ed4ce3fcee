from draw import registry
CASES, case = registry()
