/* problem: errors in OpenAI's form. */
#include <stdarg.h>
#include <string.h>

#include "client/gateway/gateway.h"

static const char *type_of(int status)
{
    switch (status) {
    case 401: return "authentication_error";
    case 429: return "rate_limit_error";
    case 503: return "unavailable_error";
    default: return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void problem_set(struct problem *p, int status, const char *code, const char *param,
                 const char *format, ...)
{
    va_list args;
    p->status = status;
    p->type = type_of(status);
    p->code = code;
    snprintf(p->param, sizeof p->param, "%s", param);
    va_start(args, format);
    vsnprintf(p->message, sizeof p->message, format, args);
    va_end(args);
}

void problem_of_code(struct problem *p, Gptoss__Code code, const char *text, uint64_t retry_ms)
{
    switch (code) {
    case GPTOSS__CODE__INVALID: problem_set(p, 400, "invalid_value", "", "%s", text); break;
    case GPTOSS__CODE__TOO_LONG:
        problem_set(p, 400, "context_length_exceeded", "", "%s", text);
        break;
    case GPTOSS__CODE__BUSY:
        problem_set(p, 429, "rate_limit_exceeded", "", "%s", text);
        p->retry_ms = retry_ms > 0 ? retry_ms : 1000;
        break;
    case GPTOSS__CODE__SHUTTING_DOWN:
        problem_set(p, 503, "shutting_down", "", "%s", text);
        p->retry_ms = retry_ms > 0 ? retry_ms : 5000;
        break;
    case GPTOSS__CODE__DEADLINE: problem_set(p, 504, "deadline", "", "%s", text); break;
    default: problem_set(p, 500, answer_code_name(code), "", "%s", text); break;
    }
}

void problem_json(struct text *out, const struct problem *p)
{
    text_print(out, "{\"error\":{\"message\":");
    write_string(out, p->message);
    text_print(out, ",\"type\":\"%s\",\"param\":", p->type);
    if (p->param[0] != '\0')
        write_string(out, p->param);
    else
        text_print(out, "null");
    text_print(out, ",\"code\":");
    if (p->code != NULL)
        write_string(out, p->code);
    else
        text_print(out, "null");
    text_print(out, "}}");
}

void problem_reply(struct exchange *x, const struct problem *p)
{
    struct text out = {0};
    problem_json(&out, p);
    text_print(&out, "\n");
    x->retry_ms = p->retry_ms;
    if (p->status == 401)
        x->challenge = "Bearer";
    http_reply(x, p->status, "application/json", &out);
}
