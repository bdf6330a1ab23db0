/*
 * tools: the commands of gptoss-gguf. Each reads its own options (argv[0] is the command's name),
 * prints on stdout, complains on stderr, and returns an exit code of base/base.h.
 */
#ifndef GPTOSS_TOOLS_H
#define GPTOSS_TOOLS_H

int tools_show(int argc, char **argv);
int tools_check(int argc, char **argv);
int tools_plan(int argc, char **argv);
int tools_diff(int argc, char **argv);
int tools_synth(int argc, char **argv);
int tools_quantize(int argc, char **argv);

#endif
