/* Makes a disk fail: preloaded, it counts what a process changes below the folder FAULT_FOLDER.
 *
 * From change FAULT_FROM to change FAULT_TO, each one fails with FAULT_ERRNO, or, where that is 0,
 * takes FAULT_DELAY microseconds longer. The file FAULT_COUNT has the number of changes so far. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int number(const char *name) {
  const char *text = getenv(name);
  return text ? atoi(text) : 0;
}

static int path_fails(const char *path) {
  static int changes;
  const char *folder = getenv("FAULT_FOLDER");
  if (!folder || strncmp(path, folder, strlen(folder))) return 0;
  int change = __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
  int count = REAL(open)(getenv("FAULT_COUNT"), O_WRONLY | O_CREAT, 0600);
  if (count >= 0) {
    char text[16];
    int length = snprintf(text, sizeof text, "%09d", change);
    if (REAL(write)(count, text, length) != length) abort();
    close(count);
  }
  if (change < number("FAULT_FROM") || change > number("FAULT_TO")) return 0;
  if (!number("FAULT_ERRNO")) usleep(number("FAULT_DELAY"));
  errno = number("FAULT_ERRNO");
  return errno != 0;
}

static int file_fails(int file) {
  char link[32], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  int before = errno;
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = before;
  if (length < 0) return 0;
  path[length] = 0;
  return path_fails(path);
}

#define ON_FILE(type, name, parameters, ...)       \
  type name parameters {                           \
    return file_fails(file) ? -1 : REAL(name)(__VA_ARGS__); \
  }
ON_FILE(ssize_t, write, (int file, const void *data, size_t size), file, data, size)
ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), file, data, size, at)
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), file, data, size,
        at)
ON_FILE(ssize_t, writev, (int file, const struct iovec *parts, int count), file, parts, count)
ON_FILE(int, fsync, (int file), file)
ON_FILE(int, fdatasync, (int file), file)
ON_FILE(int, ftruncate, (int file, off_t size), file, size)
ON_FILE(int, ftruncate64, (int file, off64_t size), file, size)

int rename(const char *from, const char *to) {
  return path_fails(to) ? -1 : REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) { return path_fails(path) ? -1 : REAL(mkdir)(path, mode); }

#define OPENS(name)                                                             \
  int name(const char *path, int flags, ...) {                                  \
    va_list more;                                                               \
    va_start(more, flags);                                                      \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;     \
    va_end(more);                                                               \
    int writes = (flags & O_ACCMODE) != O_RDONLY;                               \
    return writes && path_fails(path) ? -1 : REAL(name)(path, flags, mode);     \
  }
OPENS(open)
OPENS(open64)
