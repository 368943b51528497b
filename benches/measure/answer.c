/* A PostgreSQL that is none, for measuring a load generator: lets everybody in and answers each Query at once, in one thread, so that the
 * server's CPU time decides little. One row for what begins with S, otherwise the command's tag; TX status from BEGIN, COMMIT and ROLLBACK.
 * Told to end (SIGTERM, SIGINT) it says how many connections there were at most at once, and how many of those logged in carried a transaction.
 * cc -O2 -o answer answer.c && ./answer PORT */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINKS = 65536, BUFFER = 16384 };
static struct link { int started, used, worked; char status; unsigned char *in; } links[LINKS];
static long now_open, most_open, most_worked, now_worked, transactions, queries;
static volatile sig_atomic_t over;
static void stop(int signal) { (void)signal; over = 1; }
static unsigned char out[1 << 20];
static size_t filled;

static void put(const void *bytes, size_t n) { if (filled + n <= sizeof out) { memcpy(out + filled, bytes, n); filled += n; } }
static void message(char tag, const void *body, uint32_t n) { uint32_t size = htonl(n + 4); put(&tag, 1); put(&size, 4); put(body, n); }
static void parameter(const char *name, const char *value) {
    char body[128]; int n = snprintf(body, sizeof body, "%s%c%s", name, 0, value); message('S', body, (uint32_t)n + 1);
}
static void welcome(void) {
    message('R', "\0\0\0\0", 4);
    parameter("server_version", "15.0"); parameter("client_encoding", "UTF8"); parameter("standard_conforming_strings", "on");
    message('K', "\0\1\0\0\0\0\0\1", 8);
}
static void answer(struct link *l, const unsigned char *sql) {
    static const char row[] = "\0\1x\0\0\0\0\0\0\0\0\0\0\27\0\4\377\377\377\377\0\0";
    char c = (char)sql[0];
    queries++;
    if (c == 'S') { message('T', row, sizeof row - 1); message('D', "\0\1\0\0\0\1\61", 7); message('C', "SELECT 1", 9); }
    else {
        char tag[32]; size_t n = 0;
        while (n < 30 && sql[n] && sql[n] != ' ' && sql[n] != ';') { tag[n] = (char)sql[n]; n++; }
        tag[n] = 0; message('C', tag, (uint32_t)n + 1);
        if (c == 'B') {
            l->status = 'T'; transactions++;
            if (!l->worked) { l->worked = 1; if (++now_worked > most_worked) most_worked = now_worked; }
        }
        else if (c == 'C' || c == 'R') l->status = 'I';
    }
    message('Z', &l->status, 1);
}
static int take(int fd, struct link *l) {
    ssize_t got = read(fd, l->in + l->used, (size_t)(BUFFER - l->used));
    if (got <= 0) return 0;
    l->used += (int)got; filled = 0;
    unsigned char *p = l->in, *end = l->in + l->used;
    while (end - p >= 5) {
        uint32_t size; memcpy(&size, p + (l->started ? 1 : 0), 4); size = ntohl(size) + (l->started ? 1 : 0);
        if (size < 5 || size > BUFFER) return 0;
        if (p + size > end) break;
        if (!l->started) {
            uint32_t code; memcpy(&code, p + 4, 4); code = ntohl(code);
            if (code == 80877103 || code == 80877104) put("N", 1);
            else if (code == 80877102) return 0;
            else { l->started = 1; l->status = 'I'; if (++now_open > most_open) most_open = now_open; welcome(); message('Z', &l->status, 1); }
        } else if (p[0] == 'X') return 0;
        else if (p[0] == 'Q') answer(l, p + 5);
        p += size;
    }
    l->used = (int)(end - p); memmove(l->in, p, (size_t)l->used);
    return !filled || write(fd, out, filled) == (ssize_t)filled;
}
int main(int argc, char **argv) {
    int on = 1, s = socket(AF_INET, SOCK_STREAM, 0), ep = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0")), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(s, (struct sockaddr *)&at, sizeof at) || listen(s, 4096)) { perror("answer"); return 1; }
    struct epoll_event e = {.events = EPOLLIN, .data.fd = s}, ready[256];
    epoll_ctl(ep, EPOLL_CTL_ADD, s, &e);
    struct sigaction end = {.sa_handler = stop};
    sigaction(SIGTERM, &end, 0); sigaction(SIGINT, &end, 0);
    while (!over) for (int i = 0, n = epoll_wait(ep, ready, 256, -1); i < n; i++) {
        int fd = ready[i].data.fd;
        if (fd == s) {
            int c = accept(s, 0, 0);
            if (c < 0) continue;
            if (c >= LINKS) { close(c); continue; }
            setsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            if (!links[c].in) links[c].in = malloc(BUFFER);
            links[c].started = links[c].used = links[c].worked = 0;
            e.data.fd = c; epoll_ctl(ep, EPOLL_CTL_ADD, c, &e);
        } else if (!take(fd, &links[fd])) {
            now_open -= links[fd].started; now_worked -= links[fd].worked;
            close(fd);
        }
    }
    printf("answer: %ld connections logged in at most at once, %ld with a transaction; %ld transactions, %ld queries\n",
           most_open, most_worked, transactions, queries);
}
