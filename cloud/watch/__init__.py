"""Seeing inside the service: metrics, the live page, traces, logs. Everything here listens to `cloud.engine.events`."""
