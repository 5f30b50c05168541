"""Signals less their usual course of a day, and the parts that such signals are made of."""
