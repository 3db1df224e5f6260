"""The service model: how long, how much, why.

Azure Backup's fleet behaviour, calibrated on what the real pipeline measures. Everything that the
documents say is data with its source, in the TOML files here; where they conflict, a reading is
chosen by name.

Declared: `scenario` (a fleet), with its `policy`, `schedule`, `retention`, `profiles` (eras) and
`failures`. Simulated: ``MODEL.md`` says it exactly; `layout` turns a scenario into a `plan`, which
`reference` (SimPy, to be read) and `engine` (fast) run alike; `simulation` puts it together. Made
of it: `objectives` (RPO, RTO), `restores`, `capacity`, `planner`, `advice`, `charges` and `cost`.

Beside them stand small models with their rules: `points`, `blocks`, `archive`, `deletion`,
`billing`, `limits`, `databases`; and two agents that the real pipeline runs: `mars` and `dpm`.
`calibration` holds what dispersed changes cost here, `validation` compares the model with the
documents' numbers.
"""
