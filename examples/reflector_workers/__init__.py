"""Reflector's multitrack diarization as real Conductor workers, on `loopsafe_db.get_database`.

Run it with ``python -m reflector_workers demo`` (this folder's parent on the Python path).
"""
