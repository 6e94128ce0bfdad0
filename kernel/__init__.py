"""The kernel layer: who owns processes, who is alive, who may steer what, and how people talk to a run.

warden      warden.py children.py kernel_watch.py warden_socket.py process.py   owns processes; stdlib only
kernel      kernel.py main.py owner.py warden_link.py status.py                 the kernel process
supervision supervisor.py fleet.py ladder.py roster.py registry.py instance.py restart.py commands.py   pure
knobs       knobs.py knobspec.py knobstate.py knob_desk.py                      the knob table and its counter
events      events.py stream.py seen.py follow.py                               the numbered stream, both ends
journal     journal.py journal_format.py journal_reader.py                      the run's memory
runtime     actor.py node.py mail.py loop.py boot.py settings.py logs.py        what every service stands on
a run       launch.py rundir/ config/ spec.py client.py cli/                    from topology file to command line
"""
