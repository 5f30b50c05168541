"""Click models of others, all behind one interface: predict some events, learn some events.

In: a `Stream`, a whole recording in memory. Each system learns only what is given to `learn`;
`predict` answers for any events, with the model as it stands. So a delay is a matter of when
`predict` is called, the same for everyone.
"""
