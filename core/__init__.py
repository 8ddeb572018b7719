import os

# OpenCV reads these when it is imported, by whichever module is first: broken films are reported by the scripts.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
