"""The contract every role imports: subjects, frames, settings, errors and the only file that knows the NATS client."""
