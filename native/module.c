/* thinwire._coder: coder.c for Python. Stable ABI of 3.11, so that one build serves every later version. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "coder.h"
#include "module_packer.h"

#ifndef THINWIRE_SOURCE
#define THINWIRE_SOURCE "" /* hash of these sources: tells scripts/build_native.py whether a build is of them */
#endif

typedef struct {
    PyObject_HEAD
    tw_coder coder;
    void *memory; /* copies of the tables, so that nothing outside can change them */
} CoderObject;

/* Copies `count` elements of `size` bytes from a contiguous buffer; raises ValueError for any other length. */
static int copy_exactly(void *to, const Py_buffer *from, size_t count, size_t size, const char *name) {
    if ((size_t)from->len != count * size) {
        PyErr_Format(PyExc_ValueError, "%s has %zd bytes, not %zu", name, from->len, count * size);
        return 0;
    }
    if (from->len) memcpy(to, from->buf, (size_t)from->len);
    return 1;
}

static int fill(CoderObject *self, int context, int shape[3], int low, Py_buffer *bounds, Py_buffer *freqs, Py_buffer *table_of,
                Py_buffer *past, Py_buffer *lean, Py_buffer *near, int rows, int alphabet) {
    tw_tables t = {.context = context, .channels = shape[0], .height = shape[1], .width = shape[2], .low = low,
                   .rows = rows, .alphabet = alphabet, .layers = (int32_t)(bounds->len / 4) - 1};
    const size_t buckets = (size_t)tw_buckets(context), storage = bounds->len > 4 * TW_MAX_LAYERS ? 0 : tw_storage_words(&t);
    if (storage == 0) {
        PyErr_SetString(PyExc_ValueError, "the context, the shape or the tables are out of range");
        return 0;
    }
    int32_t widths[3];
    tw_edge_widths(context, widths);
    const size_t channels = (size_t)t.channels, layers = (size_t)t.layers, table_size = (size_t)rows * (size_t)alphabet;
    const size_t past_size = layers * (size_t)widths[0], lean_size = channels * (size_t)widths[1];
    const size_t near_size = channels * (size_t)widths[2];
    const size_t words = storage + table_size + layers + 1 + past_size + lean_size + near_size;
    const size_t halves = channels * buckets;
    uint32_t *memory = malloc(4 * words + 2 * halves);
    if (memory == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    self->memory = memory;
    uint32_t *own_freqs = memory + storage;
    int32_t *own_bounds = (int32_t *)(own_freqs + table_size), *own_past = own_bounds + layers + 1;
    int32_t *own_lean = own_past + past_size, *own_near = own_lean + lean_size;
    uint16_t *own_table_of = (uint16_t *)(memory + words);
    if (!copy_exactly(own_freqs, freqs, table_size, 4, "freqs") || !copy_exactly(own_bounds, bounds, layers + 1, 4, "bounds") ||
        !copy_exactly(own_table_of, table_of, halves, 2, "table_of") ||
        !copy_exactly(own_past, past, past_size, 4, "past_edges") ||
        !copy_exactly(own_lean, lean, lean_size, 4, "lean_edges") ||
        !copy_exactly(own_near, near, near_size, 4, "near_edges")) {
        return 0;
    }
    t.freqs = own_freqs;
    t.bounds = own_bounds;
    t.table_of = own_table_of;
    t.past_edges = own_past;
    t.lean_edges = own_lean;
    t.near_edges = own_near;
    const char *fault = tw_coder_init(&self->coder, &t, memory);
    if (fault) PyErr_SetString(PyExc_ValueError, fault);
    return fault == NULL;
}

PyDoc_STRVAR(coder_doc,
             "Coder(context, (C, h, w), bounds, freqs, (T, A), table_of, low, past_edges, lean_edges, near_edges)\n--\n\n"
             "Codes packets of one bundle. Arrays are contiguous buffers: bounds int32 (layers + 1,), freqs uint32 (T, A),\n"
             "table_of uint16 (C, K), edges int32. Raises ValueError for tables that break a rule of WIRE.md.");

static PyObject *coder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    int context, low, shape[3], rows, alphabet;
    Py_buffer bounds, freqs, table_of, past, lean, near;
    if (kwargs && PyDict_Size(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "Coder() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "i(iii)y*y*(ii)y*iy*y*y*:Coder", &context, &shape[0], &shape[1], &shape[2], &bounds, &freqs,
                          &rows, &alphabet, &table_of, &low, &past, &lean, &near)) {
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    CoderObject *self = (CoderObject *)alloc(type, 0);
    if (self && !fill(self, context, shape, low, &bounds, &freqs, &table_of, &past, &lean, &near, rows, alphabet)) {
        Py_DECREF(self);
        self = NULL;
    }
    PyBuffer_Release(&bounds);
    PyBuffer_Release(&freqs);
    PyBuffer_Release(&table_of);
    PyBuffer_Release(&past);
    PyBuffer_Release(&lean);
    PyBuffer_Release(&near);
    return (PyObject *)self;
}

static void coder_dealloc(CoderObject *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    free(self->memory);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static int check_layers(const CoderObject *self, Py_ssize_t layers) {
    if (layers >= 1 && layers <= self->coder.tables.layers) return 1;
    PyErr_Format(PyExc_ValueError, "layers must be 1 to %d, not %zd", (int)self->coder.tables.layers, layers);
    return 0;
}

static int check_symbols(const CoderObject *self, const Py_buffer *symbols) {
    const size_t wanted = (size_t)self->coder.tables.channels * (size_t)self->coder.cells * sizeof(int32_t);
    if ((size_t)symbols->len == wanted && (uintptr_t)symbols->buf % sizeof(int32_t) == 0) return 1;
    PyErr_Format(PyExc_ValueError, "symbols must be %zu aligned bytes of int32, got %zd", wanted, symbols->len);
    return 0;
}

PyDoc_STRVAR(encode_doc, "encode(symbols, layers)\n--\n\nint32 (C, h, w) buffer -> list of the first layers' payloads.");

static PyObject *coder_encode(CoderObject *self, PyObject *args) {
    Py_buffer symbols;
    int layers;
    if (!PyArg_ParseTuple(args, "y*i:encode", &symbols, &layers)) return NULL;
    PyObject *payloads = NULL;
    char *memory = NULL;
    if (!check_layers(self, layers) || !check_symbols(self, &symbols)) goto end;
    const size_t work_bytes = tw_work_bytes(&self->coder), length_bytes = (size_t)layers * sizeof(size_t);
    memory = malloc(work_bytes + length_bytes + tw_encoded_bound(&self->coder, layers));
    if (memory == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    size_t *lengths = (size_t *)(memory + work_bytes);
    uint8_t *out = (uint8_t *)memory + work_bytes + length_bytes;
    Py_BEGIN_ALLOW_THREADS
    tw_encode(&self->coder, symbols.buf, layers, out, lengths, memory);
    Py_END_ALLOW_THREADS
    payloads = PyList_New(layers);
    for (int i = 0; payloads && i < layers; out += lengths[i++]) {
        PyObject *payload = PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)lengths[i]);
        if (payload == NULL || PyList_SetItem(payloads, i, payload) < 0) {
            Py_DECREF(payloads);
            payloads = NULL;
        }
    }
end:
    free(memory);
    PyBuffer_Release(&symbols);
    return payloads;
}

PyDoc_STRVAR(decode_doc,
             "decode(payloads, symbols)\n--\n\n"
             "Tuple of bytes -> fills the int32 (C, h, w) buffer; absent layers become zeros. Returns (status, layer): 0 for\n"
             "success, 1 for a layer that its tables cannot read, 2 for one that no encoder writes.");

static PyObject *coder_decode(CoderObject *self, PyObject *args) {
    PyObject *payloads;
    Py_buffer symbols;
    if (!PyArg_ParseTuple(args, "O!w*:decode", &PyTuple_Type, &payloads, &symbols)) return NULL;
    PyObject *result = NULL;
    char *memory = NULL;
    const Py_ssize_t layers = PyTuple_Size(payloads);
    if (!check_layers(self, layers) || !check_symbols(self, &symbols)) goto end;
    const size_t work_bytes = tw_work_bytes(&self->coder);
    memory = malloc(work_bytes + (size_t)layers * (sizeof(uint8_t *) + sizeof(size_t)));
    if (memory == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    const uint8_t **starts = (const uint8_t **)(memory + work_bytes);
    size_t *lengths = (size_t *)(starts + layers);
    for (Py_ssize_t i = 0; i < layers; i++) {
        char *bytes;
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(payloads, i), &bytes, &length) < 0) goto end;
        starts[i] = (const uint8_t *)bytes;
        lengths[i] = (size_t)length;
    }
    int32_t bad = 0;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = tw_decode(&self->coder, (int32_t)layers, starts, lengths, symbols.buf, &bad, memory);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("ii", status, (int)bad);
end:
    free(memory);
    PyBuffer_Release(&symbols);
    return result;
}

static PyMethodDef coder_methods[] = {
    {"encode", (PyCFunction)coder_encode, METH_VARARGS, encode_doc},
    {"decode", (PyCFunction)coder_decode, METH_VARARGS, decode_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot coder_slots[] = {
    {Py_tp_doc, (void *)coder_doc},     {Py_tp_new, (void *)coder_new}, {Py_tp_dealloc, (void *)coder_dealloc},
    {Py_tp_methods, coder_methods}, {0, NULL},
};

static PyType_Spec coder_spec = {
    .name = "thinwire._coder.Coder",
    .basicsize = sizeof(CoderObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = coder_slots,
};

static int fill_module(PyObject *module) {
    PyObject *type = PyType_FromSpec(&coder_spec), *packer = tw_packer_type();
    int failed = type == NULL || packer == NULL || PyModule_AddObjectRef(module, "Coder", type) < 0 ||
                 PyModule_AddObjectRef(module, "StillPacker", packer) < 0;
    Py_XDECREF(type);
    Py_XDECREF(packer);
    return failed || PyModule_AddStringConstant(module, "SOURCE", THINWIRE_SOURCE) < 0 ? -1 : 0;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)fill_module}, {0, NULL}};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, .m_name = "_coder", .m_doc = "The coders of thinwire/WIRE.md in C: of symbols, and of the symbols of AV1 stills.", .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__coder(void) { return PyModuleDef_Init(&module_def); }
