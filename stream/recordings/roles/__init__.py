"""The role of each column of a sample: what users ask for, what names and values say."""
