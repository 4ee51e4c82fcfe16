"""A seeded campaign of faults: kills, full disks, bad inputs, malicious servers and clients.

    python -m benchmarks.faults --kills 100 --inputs 1500 --seed 1

===================  ============================================================================
``warm``             real command lines, forked from a process that has imported everything
``material``         the smallest training, and the run folders that cases start from
``outcomes``         what a case is, what became of it, the table
``gates/``           a file for each kind of input: what is written, and what is known of it
``kills``, ``disk``  signals and disks, compared with the uninterrupted run
``hostile_*``        a malicious reward server, malicious clients
``campaign``         runs cases, keeps failing ones
===================  ============================================================================

Not here: the routes that the pack adds to ComfyUI and hostile values of widgets, which meet a real
ComfyUI in ``tests/comfy/test_hostile_routes.py`` and ``tests/comfy/test_hostile_widgets.py``.
"""
