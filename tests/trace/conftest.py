"""Hypothesis without deadlines (a busy machine is no bug), and with folders that one test's examples share."""

from hypothesis import HealthCheck, settings

settings.register_profile("trace", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("trace")
