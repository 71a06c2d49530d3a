"""Work that is not done twice: names by content, the store of finished work, arrays on disk."""
