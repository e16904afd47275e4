"""The test suite; its folders mirror the roles, and path/ is the whole way."""
