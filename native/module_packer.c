/* thinwire._coder.StillPacker: still_packer.c for Python. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "module_packer.h"
#include "still_packer.h"

typedef struct {
    PyObject_HEAD
    tw_model *model;
    tw_scratch *learning; /* once it has learned */
    tw_scratch *spare;    /* of the last call; touched with the GIL alone */
} PackerObject;

PyDoc_STRVAR(packer_doc,
             "StillPacker(state)\n--\n\n"
             "Codes the symbols of bare AV1 frames with probabilities of its own. state: bytes of `state()`, or b'' for a\n"
             "model that knows nothing, which learns with 60 MB of memory. Raises ValueError for a state that is none of\n"
             "this version.");

static void packer_dealloc(PyObject *self) {
    PackerObject *packer = (PackerObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    tw_model_free(packer->model);
    tw_scratch_free(packer->learning);
    tw_scratch_free(packer->spare);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *packer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"state", NULL};
    Py_buffer state;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*", names, &state)) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PackerObject *self = (PackerObject *)allocate(type, 0);
    if (self == NULL) {
        PyBuffer_Release(&state);
        return NULL;
    }
    self->model = tw_model_new(state.len == 0 ? TW_LEARNING_BITS : TW_SLOT_BITS);
    int fault = 0;
    if (self->model == NULL) {
        PyErr_NoMemory();
        fault = 1;
    } else if (state.len == 0) {
        tw_model_start(self->model);
    } else if (tw_model_load(self->model, state.buf, (size_t)state.len)) {
        PyErr_SetString(PyExc_ValueError, "these are no probabilities of packed stills, or of another version");
        fault = 1;
    }
    PyBuffer_Release(&state);
    if (fault) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Memory for a call that lets other threads run: that of an earlier call, or new. */
static tw_scratch *taken(PackerObject *self) {
    tw_scratch *scratch = self->spare;
    self->spare = NULL;
    return scratch ? scratch : tw_scratch_new(self->model->bits);
}

static void given_back(PackerObject *self, tw_scratch *scratch) {
    if (self->spare) tw_scratch_free(scratch);
    else self->spare = scratch;
}

static int parsed(PyObject *args, Py_buffer *bytes, tw_av1_form *form) {
    if (!PyArg_ParseTuple(args, "y*iippi", bytes, &form->width, &form->height, &form->cdef, &form->restoration, &form->rung)) {
        return 0;
    }
    if (form->rung < 0 || form->rung > 15) {
        PyErr_SetString(PyExc_ValueError, "rung is 0 to 15");
        PyBuffer_Release(bytes);
        return 0;
    }
    return 1;
}

PyDoc_STRVAR(pack_doc,
             "pack(frame, width, height, cdef, restoration, rung)\n--\n\n"
             "A bare frame of 4:2:0 → fewer bytes, or None where it has what the model does not know (screen content,\n"
             "several tiles, segments, loop restoration, sides above 384) or would not get smaller. What is returned\n"
             "unpacks to the very frame.");

static PyObject *packer_pack(PyObject *self, PyObject *args) {
    Py_buffer frame;
    tw_av1_form form = {0};
    if (!parsed(args, &frame, &form)) return NULL;
    PackerObject *packer = (PackerObject *)self;
    uint8_t *out = PyMem_Malloc((size_t)frame.len + 1);
    tw_scratch *scratch = taken(packer);
    long size = -1;
    if (out && scratch) {
        Py_BEGIN_ALLOW_THREADS
        size = tw_still_pack(packer->model, scratch, form, frame.buf, (size_t)frame.len, out);
        Py_END_ALLOW_THREADS
    }
    given_back(packer, scratch);
    PyBuffer_Release(&frame);
    PyObject *result = NULL;
    if (size < 0) PyErr_NoMemory();
    else if (size == 0) result = Py_NewRef(Py_None);
    else result = PyBytes_FromStringAndSize((const char *)out, size);
    PyMem_Free(out);
    return result;
}

PyDoc_STRVAR(unpack_doc,
             "unpack(packed, width, height, cdef, restoration, rung)\n--\n\n"
             "What `pack` gave → the frame. Raises ValueError for bytes that are none.");

static PyObject *packer_unpack(PyObject *self, PyObject *args) {
    Py_buffer packed;
    tw_av1_form form = {0};
    if (!parsed(args, &packed, &form)) return NULL;
    const int known = form.width > 0 && form.height > 0 && form.width <= 384 && form.height <= 384;
    const size_t capacity = known ? 4 * (size_t)form.width * (size_t)form.height + 4096 : 1;
    PackerObject *packer = (PackerObject *)self;
    uint8_t *out = PyMem_Malloc(capacity);
    tw_scratch *scratch = taken(packer);
    long size = -1;
    if (out && scratch) {
        Py_BEGIN_ALLOW_THREADS
        size = tw_still_unpack(packer->model, scratch, form, packed.buf, (size_t)packed.len, out, capacity);
        Py_END_ALLOW_THREADS
    }
    given_back(packer, scratch);
    PyBuffer_Release(&packed);
    PyObject *result = NULL;
    if (size < 0) PyErr_NoMemory();
    else if (size == 0) PyErr_SetString(PyExc_ValueError, "the packed still is damaged");
    else result = PyBytes_FromStringAndSize((const char *)out, size);
    PyMem_Free(out);
    return result;
}

PyDoc_STRVAR(learn_doc, "learn(frame, width, height, cdef, restoration, rung)\n--\n\n"
                        "Trains on a frame. Returns False for one that cannot be packed. While it runs no other thread may use this packer.");

static PyObject *packer_learn(PyObject *self, PyObject *args) {
    Py_buffer frame;
    tw_av1_form form = {0};
    PackerObject *packer = (PackerObject *)self;
    if (packer->learning == NULL) packer->learning = tw_scratch_new(packer->model->bits);
    if (packer->learning == NULL || tw_model_may_learn(packer->model)) return PyErr_NoMemory();
    if (!parsed(args, &frame, &form)) return NULL;
    const int learned = tw_still_learn(packer->model, packer->learning, form, frame.buf, (size_t)frame.len);
    PyBuffer_Release(&frame);
    return PyBool_FromLong(learned);
}

PyDoc_STRVAR(state_doc, "state()\n--\n\nWhat was learned, for `StillPacker(state)`: bytes of one fixed length.");

static PyObject *packer_state(PyObject *self, PyObject *unused) {
    (void)unused;
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)tw_model_size());
    if (result) {
        char *to = PyBytes_AsString(result);
        tw_model_save(((PackerObject *)self)->model, (uint8_t *)to);
    }
    return result;
}

static PyMethodDef methods[] = {{"pack", packer_pack, METH_VARARGS, pack_doc},
                                {"unpack", packer_unpack, METH_VARARGS, unpack_doc},
                                {"learn", packer_learn, METH_VARARGS, learn_doc},
                                {"state", packer_state, METH_NOARGS, state_doc},
                                {NULL, NULL, 0, NULL}};

static PyType_Slot slots[] = {{Py_tp_doc, (void *)packer_doc},
                              {Py_tp_new, packer_new},
                              {Py_tp_dealloc, packer_dealloc},
                              {Py_tp_methods, methods},
                              {0, NULL}};

static PyType_Spec spec = {"thinwire._coder.StillPacker", sizeof(PackerObject), 0, Py_TPFLAGS_DEFAULT, slots};

PyObject *tw_packer_type(void) { return PyType_FromSpec(&spec); }
