gptoss_test(proto gptoss_proto PkgConfig::zmq)
