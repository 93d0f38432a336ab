#ifndef THINWIRE_MODULE_PACKER_H
#define THINWIRE_MODULE_PACKER_H

#include <Python.h>

PyObject *tw_packer_type(void);

#endif
