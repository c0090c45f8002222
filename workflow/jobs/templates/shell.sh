#!/bin/bash
# {job_name}: the same command continues a run that was stopped (exit code 75).
cd {directory} || exit
exec {program} {args}
