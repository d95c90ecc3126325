// A plugin of callgate in C: the workload may run so many programs, and then no more.
//
// Its configuration is that number, and nothing else: `"config": 100`. README.md says how it is built.

#include "plugin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t most;
static uint32_t run;

void exports_callgate_policy_policy_describe(exports_callgate_policy_policy_description_t *description) {
    plugin_string_dup(&description->name, "quota");
    plugin_string_dup(&description->version, "0.1.0");
    description->config_schema.is_some = true;
    plugin_string_dup(&description->config_schema.val, "{\"type\": \"integer\", \"minimum\": 0, \"maximum\": 1000000}");
}

// The number that the text is, or -1.
static int64_t number(const plugin_string_t *text) {
    int64_t value = 0;
    for (size_t at = 0; at < text->len; at++) {
        if (text->ptr[at] < '0' || text->ptr[at] > '9') return -1;
        value = value * 10 + (text->ptr[at] - '0');
        if (value > 1000000) return -1;
    }
    return text->len == 0 ? -1 : value;
}

bool exports_callgate_policy_policy_configure(plugin_string_t *config, exports_callgate_policy_policy_event_kinds_t *kinds,
                                              exports_callgate_policy_policy_config_error_t *error) {
    int64_t value = number(config);
    plugin_string_free(config);
    if (value < 0) {
        plugin_string_dup(&error->pointer, "");
        plugin_string_dup(&error->message, "takes a number of programs, from 0 to 1000000");
        error->hint.is_some = true;
        plugin_string_dup(&error->hint.val, "write \"config\": 100");
        return false;
    }
    most = (uint32_t)value;
    *kinds = CALLGATE_POLICY_TYPES_EVENT_KINDS_EXEC;
    return true;
}

void exports_callgate_policy_policy_decide(exports_callgate_policy_policy_event_t *event,
                                           exports_callgate_policy_policy_verdict_t *verdict) {
    // Whatever was handed over is ours to free.
    callgate_policy_types_event_free(event);
    memset(verdict, 0, sizeof *verdict);
    if (run < most) {
        run++;
        verdict->tag = CALLGATE_POLICY_TYPES_VERDICT_ABSTAIN;
        return;
    }
    char reason[64];
    snprintf(reason, sizeof reason, "%u programs have been run already", run);
    verdict->tag = CALLGATE_POLICY_TYPES_VERDICT_DENY;
    plugin_string_dup(&verdict->val.deny.rule, "quota");
    plugin_string_dup(&verdict->val.deny.reason, reason);
    // EAGAIN: what fork(2) says at a limit.
    verdict->val.deny.errno.is_some = true;
    verdict->val.deny.errno.val = 11;
}
