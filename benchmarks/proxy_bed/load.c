/* The upstream of all proxies and the clients of the proxy that is measured, in one thread that never sleeps while it
 * measures. So neither end is ever the bottleneck, and no proxy pays for waking up a sleeping peer on another core: that
 * price (5 us in a virtual machine) depends on how busy the peer is, and would make a fast proxy look faster.
 *
 *   load PORT REQUESTS     an engine on 127.0.0.1:PORT; REQUESTS: for each request its length in 4 bytes, then itself
 *
 * POST /v1/completions?interval=S    an SSE stream, a chunk every S seconds; other POSTs: a chat completion at once
 * GET /health                        200
 * GET /measure?port=P&pid=N&clients=C&seconds=S      kept connections to P, each asks again when it is answered
 * GET /streams?port=P&pid=N&clients=C&seconds=S&interval=I    open streams through P
 *   both answer in JSON; pid: whose CPU time counts (0: nobody's)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LISTENER, SERVER, ASKER, READER };
enum { BUFFER = 16384, EVENTS = 512, MAX_STREAMS = 4096, MAX_REQUESTS = 1024, SLOTS = 2000000 }; /* slots of 100 ns */

typedef struct {
    int fd, kind, length, streams;
    double asked;
    char *buffer;
} Conn;

static int epoll_fd;
static char *requests[MAX_REQUESTS];
static int request_length[MAX_REQUESTS], request_count, next_request;
static Conn *stream[MAX_STREAMS];
static int stream_count;
static double stream_interval = 1, stream_due;
static long answered, chunks, failed;
static unsigned histogram[SLOTS];
static Conn *asker[MAX_STREAMS];

static const char *ANSWER =
    "{\"id\":\"chatcmpl-6f1f2a8d5e9b4c7f\",\"object\":\"chat.completion\",\"created\":1763800000,\"model\":\"bench\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"GPU memory is scarce, so models that "
    "nobody asks sleep and those that are asked wake; a request that finds its model asleep waits a little longer for its "
    "first token.\",\"refusal\":null,\"tool_calls\":[]},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}],"
    "\"service_tier\":null,\"usage\":{\"prompt_tokens\":213,\"total_tokens\":256,\"completion_tokens\":43,"
    "\"prompt_tokens_details\":null},\"prompt_logprobs\":null}";
static const char *EVENT =
    "data: {\"id\":\"chatcmpl-6f1f2a8d5e9b4c7f\",\"object\":\"chat.completion.chunk\",\"created\":1763800000,"
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,"
    "\"finish_reason\":null}]}\n\n";

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double cpu_of(int pid) {
    char path[300];
    double total = 0, one;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = pid ? opendir(path) : NULL;
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, task->d_name);
        FILE *file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file && fscanf(file, "%lf", &one) == 1) total += one / 1e9;
        if (file) fclose(file);
    }
    if (tasks) closedir(tasks);
    return total;
}

static Conn *add(int fd, int kind) {
    int on = 1;
    Conn *conn = calloc(1, sizeof *conn);
    conn->fd = fd, conn->kind = kind;
    if (kind != LISTENER) {
        conn->buffer = malloc(BUFFER + 1);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    return conn;
}

static void drop(Conn *conn) {
    for (int i = 0; i < stream_count; i++)
        if (stream[i] == conn) stream[i--] = stream[--stream_count];
    close(conn->fd);
    free(conn->buffer);
    free(conn);
}

static void say(Conn *conn, const char *data, size_t length) {
    if (write(conn->fd, data, length) != (ssize_t)length && conn->kind != SERVER) failed++; /* a proxy may have left */
}

/* Length of the message that the buffer begins with; 0 while it is incomplete. */
static int message(Conn *conn) {
    conn->buffer[conn->length] = 0;
    char *end = memmem(conn->buffer, conn->length, "\r\n\r\n", 4);
    if (!end) return 0;
    int length = end + 4 - conn->buffer;
    for (char *line = conn->buffer; (line = memchr(line, '\n', end - line)); line++)
        if (!strncasecmp(line + 1, "content-length:", 15)) return length += atoi(line + 16), length <= conn->length ? length : 0;
    return length;
}

static double parameter(const char *target, const char *name) {
    const char *found = strstr(target, name);
    return found ? atof(found + strlen(name)) : 0;
}

static const char *date(void) {
    static char text[64];
    static time_t at;
    time_t second = time(NULL);
    if (second != at) strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&second)), at = second;
    return text;
}

static Conn *wanting; /* who asked for a measurement, which */
static char wanted[512];

static void serve(Conn *conn) {
    char answer[BUFFER], target[512];
    for (int length; (length = message(conn));) {
        sscanf(conn->buffer, "%*s %511s", target);
        memmove(conn->buffer, conn->buffer + length, conn->length -= length);
        if (!strncmp(target, "/measure", 8) || !strncmp(target, "/streams", 8)) {
            wanting = conn;
            strcpy(wanted, target);
        } else if (!strncmp(target, "/v1/completions", 15)) {
            int size = sprintf(answer, "HTTP/1.1 200 OK\r\ndate: %s\r\nserver: uvicorn\r\ncontent-type: text/event-stream; "
                               "charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n", date());
            say(conn, answer, size);
            stream_interval = parameter(target, "interval=");
            if (stream_count < MAX_STREAMS) stream[stream_count++] = conn;
        } else {
            int size = sprintf(answer, "HTTP/1.1 200 OK\r\ndate: %s\r\nserver: uvicorn\r\ncontent-length: %zu\r\n"
                               "content-type: application/json\r\n\r\n%s", date(), strlen(ANSWER), ANSWER);
            say(conn, answer, size);
        }
    }
}

static void ask(Conn *conn) {
    conn->asked = now();
    say(conn, requests[next_request], request_length[next_request]);
    next_request = (next_request + 1) % request_count;
}

static void heard(Conn *conn) {
    int length = message(conn);
    if (!length) return;
    if (strncmp(conn->buffer, "HTTP/1.1 200", 12) || length != conn->length) failed++;
    conn->length = 0;
    double slot = (now() - conn->asked) * 1e7;
    histogram[slot < SLOTS ? (int)slot : SLOTS - 1]++;
    answered++;
    ask(conn);
}

static void tick(void) {
    static char chunk[1024];
    static int size;
    if (!size) size = sprintf(chunk, "%zx\r\n%s\r\n", strlen(EVENT), EVENT);
    double at = now();
    if (!stream_count || at < stream_due) return;
    stream_due = at + stream_interval;
    for (int i = 0; i < stream_count; i++) say(stream[i], chunk, size);
}

static void turn(int timeout) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll_fd, events, EVENTS, timeout);
    for (int i = 0; i < count; i++) {
        Conn *conn = events[i].data.ptr;
        if (conn->kind == LISTENER) {
            int fd = accept4(conn->fd, NULL, NULL, 0);
            if (fd >= 0) add(fd, SERVER);
            continue;
        }
        int got = recv(conn->fd, conn->buffer + conn->length, BUFFER - conn->length, MSG_DONTWAIT);
        if (got <= 0 && !(got < 0 && errno == EAGAIN)) {
            if (conn->kind == SERVER) {
                drop(conn);
            } else {
                failed++;
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL);
            }
            continue;
        }
        if (got < 0) continue;
        conn->length += got;
        if (conn->kind == SERVER) {
            serve(conn);
        } else if (conn->kind == ASKER) {
            heard(conn);
        } else {
            for (char *at = conn->buffer; (at = memmem(at, conn->buffer + conn->length - at, "data: ", 6)); at++) chunks++;
            conn->length = 0;
        }
    }
    tick();
}

static double percentile(double part) {
    double sum = 0;
    for (int i = 0; i < SLOTS; i++)
        if ((sum += histogram[i]) >= part * answered) return i / 1e4;
    return 0;
}

static int dial(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) failed++;
    return fd;
}

static void run_for(double seconds) {
    for (double end = now() + seconds; now() < end;) turn(0);
}

static void measure(Conn *conn, const char *target, int streams) {
    char question[1024], text[1024], answer[2048];
    int port = parameter(target, "port="), pid = parameter(target, "pid="), clients = parameter(target, "clients=");
    double seconds = parameter(target, "seconds=");
    if (clients > MAX_STREAMS) clients = MAX_STREAMS;
    failed = 0;
    int size = sprintf(question, "POST /v1/completions?interval=%g HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       "Content-Length: 33\r\n\r\n{\"model\":\"bench\",\"stream\": true }", parameter(target, "interval="));
    for (int i = 0; i < clients; i++) {
        asker[i] = add(dial(port), streams ? READER : ASKER);
        streams ? say(asker[i], question, size) : ask(asker[i]);
        turn(0);
    }
    answered = chunks = 0;
    for (double end = now() + 10; (streams ? chunks : answered) < clients && now() < end;) turn(0);
    run_for(0.3);
    memset(histogram, 0, sizeof histogram);
    answered = chunks = 0;
    double began = now(), cpu = cpu_of(pid);
    run_for(seconds);
    double took = now() - began;
    cpu = cpu_of(pid) - cpu;
    for (int i = 0; i < clients; i++) drop(asker[i]);
    size = sprintf(text, "{\"requests\":%ld,\"chunks\":%ld,\"failed\":%ld,\"seconds\":%.6f,\"cpu\":%.6f,\"p50\":%.4f,"
                   "\"p99\":%.4f}", answered, chunks, failed, took, cpu, percentile(.5), percentile(.99));
    size = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, text);
    say(conn, answer, size);
}

int main(int count, char **words) {
    int on = 1, length;
    signal(SIGPIPE, SIG_IGN);
    /* It takes a whole core while it measures: whatever way its gate ends, it must not stay behind. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    FILE *file = count == 3 ? fopen(words[2], "rb") : NULL;
    if (!file) return fprintf(stderr, "load PORT REQUESTS\n"), 2;
    while (request_count < MAX_REQUESTS && fread(&length, 4, 1, file) == 1) {
        requests[request_count] = malloc(length);
        if (fread(requests[request_count], length, 1, file) != 1) return 2;
        request_length[request_count++] = length;
    }
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    epoll_fd = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 4096)) return perror("load"), 1;
    add(fd, LISTENER);
    for (;;) {
        double left = stream_count ? (stream_due - now()) * 1000 : 1000;
        turn(left < 0 ? 0 : left > 1000 ? 1000 : (int)left + 1);
        Conn *conn = wanting;
        wanting = NULL;
        if (conn) measure(conn, wanted, wanted[1] == 's');
    }
}
