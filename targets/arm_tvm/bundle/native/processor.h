/* Whether this processor has what the model is compiled for. */
#ifndef FLEETC_PROCESSOR_H
#define FLEETC_PROCESSOR_H

/* Ends the program where the processor lacks an instruction set of the file at `path`, which has one flag of
 * /proc/cpuinfo a line; an illegal instruction would end it in the middle. Does nothing where there is no such file,
 * or the kernel does not list its processor's flags. */
void require_processor(const char *path);

#endif
