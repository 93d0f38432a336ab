"""The system as a whole under load and in bad weather: service, field, search, Ray.

Never imports the report or a command.
"""
