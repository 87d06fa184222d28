// A disk that keeps only what was synced, preloaded into the server: whenever a file of the folder $DISK is synced, the file as it is
// at that moment is copied into the folder $KEPT; whenever the folder is synced, what was deleted from it is deleted there. What
// lies there is what a loss of power would leave behind, at its worst.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LONGEST = 8192 };

// Whatever fails ends the server, or the test would prove nothing.
static void must(int holds) {
    if (!holds) abort();
}

static void keep_file(int file, const char *kept, const char *name) {
    char copy[LONGEST], whole[LONGEST], buffer[65536];
    snprintf(whole, sizeof whole, "%s/%s", kept, name);
    snprintf(copy, sizeof copy, "%s/.%d", kept, gettid());
    // Read by the descriptor that is open: to close another one of a file gives up all locks the process holds on it.
    int to = open(copy, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    must(to >= 0);
    off_t at = 0;
    for (ssize_t count; (count = pread(file, buffer, sizeof buffer, at)) != 0; at += count)
        must(count > 0 && write(to, buffer, (size_t)count) == count);
    must(close(to) == 0 && rename(copy, whole) == 0);
}

static void keep_deletions(const char *disk, const char *kept) {
    DIR *folder = opendir(kept);
    must(folder != NULL);
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char here[LONGEST], there[LONGEST];
        snprintf(here, sizeof here, "%s/%s", disk, entry->d_name);
        snprintf(there, sizeof there, "%s/%s", kept, entry->d_name);
        if (entry->d_name[0] != '.' && access(here, F_OK) != 0) must(unlink(there) == 0);
    }
    closedir(folder);
}

static int keep(int file) {
    const char *disk = getenv("DISK"), *kept = getenv("KEPT");
    char self[64], path[LONGEST];
    snprintf(self, sizeof self, "/proc/self/fd/%d", file);
    ssize_t length = readlink(self, path, sizeof path - 1);
    must(disk && kept && length > 0);
    path[length] = 0;
    size_t folder = strlen(disk);
    if (strncmp(path, disk, folder) == 0 && path[folder] == 0) keep_deletions(disk, kept);
    if (strncmp(path, disk, folder) == 0 && path[folder] == '/') keep_file(file, kept, path + folder + 1);
    return 0;
}

int fsync(int file) { return keep(file); }
int fdatasync(int file) { return keep(file); }
