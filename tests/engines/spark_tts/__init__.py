"""Spark-TTS: by a double everywhere, by the package spark-tts-lib where it is installed."""
