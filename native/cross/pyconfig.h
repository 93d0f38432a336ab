/* Stands in for Python's own pyconfig.h when `make wheels` compiles for other systems (scripts/build_wheels.py).
 *
 * Headers of the stable ABI ask only for sizes of C types and a few facts; the compiler knows those of its target. */
#ifndef THINWIRE_CROSS_PYCONFIG_H
#define THINWIRE_CROSS_PYCONFIG_H

#define SIZEOF_SHORT __SIZEOF_SHORT__
#define SIZEOF_INT __SIZEOF_INT__
#define SIZEOF_LONG __SIZEOF_LONG__
#define SIZEOF_LONG_LONG __SIZEOF_LONG_LONG__
#define SIZEOF_VOID_P __SIZEOF_POINTER__
#define SIZEOF_SIZE_T __SIZEOF_SIZE_T__
#define SIZEOF_WCHAR_T __SIZEOF_WCHAR_T__
#define SIZEOF_FLOAT __SIZEOF_FLOAT__
#define SIZEOF_DOUBLE __SIZEOF_DOUBLE__
#define SIZEOF_TIME_T 8
#define SIZEOF_PID_T 4
#define SIZEOF_PTHREAD_T __SIZEOF_POINTER__
#define ALIGNOF_LONG __SIZEOF_LONG__
#define HAVE_STDINT_H 1
#define HAVE_INTTYPES_H 1
#define HAVE_STDDEF_H 1
#define HAVE_LONG_LONG 1
#define HAVE_PROTOTYPES 1
#define HAVE_WCHAR_H 1
#define HAVE_SYS_TYPES_H 1
#define STDC_HEADERS 1
#define WITH_THREAD 1
#define PY_FORMAT_SIZE_T "z"

#ifdef _WIN32
#define MS_WIN32 1
#define MS_WINDOWS 1
#ifdef _WIN64
#define MS_WIN64 1
#endif
#define NT_THREADS 1
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL 1
#define HAVE_IO_H 1
typedef __INTPTR_TYPE__ Py_ssize_t_base;
#else
#define HAVE_UNISTD_H 1
#define HAVE_SSIZE_T 1
#endif

#endif
