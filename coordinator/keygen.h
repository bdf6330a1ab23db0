/*
 * keygen: `gptoss-coordinator keygen FOLDER [NAME…]`: the files with which others than this host's
 * programs are admitted.
 */
#ifndef GPTOSS_COORDINATOR_KEYGEN_H
#define GPTOSS_COORDINATOR_KEYGEN_H

/* The names of the files in the folder. */
#define KEYGEN_COORDINATOR "coordinator.key"
#define KEYGEN_PUBLIC      "coordinator.pub"
#define KEYGEN_WORKER      "worker.key"
#define KEYGEN_ALLOW       "allow"

/* argv[0] is "keygen". An exit code. */
int keygen_run(int argc, char **argv);

#endif
