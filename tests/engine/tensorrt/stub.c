/* Stands in for libnvinfer, libnvonnxparser and libnvinfer_plugin so that the `tensorrt` Python package runs on
 * TensorRT for RTX, whose library is on PyPI and compiles without a GPU.
 *
 * The two libraries share their C++ interfaces; only the version that a caller announces differs. So every entry
 * point that the Python package needs is passed on to the real library, announcing the real library's version.
 * tensorrt_stub.py loads the real libraries first; here they are found again by their SONAMEs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CORE "libtensorrt_rtx.so.1"
#define PARSER "libtensorrt_onnxparser_rtx.so.1"

static void* entry(char const* library, char const* name)
{
    void* handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD);
    void* function = handle ? dlsym(handle, name) : NULL;
    if (!function)
    {
        fprintf(stderr, "tensorrt_stub: %s has no %s: %s\n", library, name, dlerror());
        abort();
    }
    return function;
}

static int version(void)
{
    return ((int32_t(*)(void)) entry(CORE, "getInferLibVersion"))();
}

#define TWO(library, name)                                                                                             \
    void* name(void* first, int announced)                                                                             \
    {                                                                                                                  \
        (void) announced;                                                                                              \
        return ((void* (*) (void*, int)) entry(library, #name))(first, version());                                     \
    }

#define THREE(library, name)                                                                                           \
    void* name(void* first, void* second, int announced)                                                               \
    {                                                                                                                  \
        (void) announced;                                                                                              \
        return ((void* (*) (void*, void*, int)) entry(library, #name))(first, second, version());                      \
    }

TWO(CORE, createInferBuilder_INTERNAL)
TWO(CORE, createInferRuntime_INTERNAL)
THREE(CORE, createInferRefitter_INTERNAL)
THREE(PARSER, createNvOnnxParser_INTERNAL)
THREE(PARSER, createNvOnnxParserRefitter_INTERNAL)

void* getBuilderPluginRegistry(int capability)
{
    return ((void* (*) (int) ) entry(CORE, "getBuilderPluginRegistry"))(capability);
}

void* getPluginRegistry(void)
{
    return ((void* (*) (void) ) entry(CORE, "getPluginRegistry"))();
}

int getNvOnnxParserVersion(void)
{
    return ((int (*)(void)) entry(PARSER, "getNvOnnxParserVersion"))();
}

bool initLibNvInferPlugins(void* logger, char const* library_namespace)
{
    (void) logger;
    (void) library_namespace;
    return true; /* TensorRT for RTX has no plugin library */
}
