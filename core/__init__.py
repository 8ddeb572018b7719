"""Active Speakers in Context. The modules of this folder are the paper; the packages hold everything else.

Each imports only from itself and from those below it (`tests/test_layout.py` checks this):

    detection   who speaks when in a video without annotations (scripts/detect_speakers.py); the review page
    reports     breakdowns, tables and figures of results
    synthetic   drawn faces and synthetic voices: a small data set for the demo and the tests
    the paper   models, transforms, mfcc, contexts, datasets, loaders, training, inference, metrics, ablation; other
                encoders: lr_asd, encoders
    media       decoding and encoding: frames, audio and crops out of videos
    formats     reading and writing of files: csv tables, annotations, clips, features, predictions
    config      constants and defaults
    runtime     what any project needs: command lines, devices, processes, files, which results are kept on resuming

The scripts at the top level, in data/ and in scripts/ are command lines; the work is done here.

Words, each with one meaning: a *track* is one face followed through a shot (AVA's `entity_id`); a *row* is one face at
one timestamp; a *frame id* is the code of a (video, timestamp) pair; a *clip* is T consecutive crops of a track,
centred on a row, with their audio; a *context* is L steps of S speakers; a *rank* is one of several processes that work
together; a *run* is a training run.
"""

import os

# OpenCV reads these when it is imported. Broken videos are reported by the scripts instead.
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
