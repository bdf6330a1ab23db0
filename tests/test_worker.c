/*
 * Real ranks, driven by a small coordinator (test_worker.h). usage: test_worker pipeline|refusals|silence
 */
#include "tests/test.h"

#include "tests/test_worker.h"

/* ── cases ─────────────────────────────────────────────────────────────────────────────────── */

/* Two sequences in the same steps, prompts cut into chunks, IN_FLIGHT steps ahead of what was seen: so
 * all but the prompts' tokens go round the ring. */
static void two_sequences(uint32_t ranks)
{
    enum { TOKENS = 40 };
    struct sequence sequences[2] = {golden("genesis", 2), golden("psalm23", 0)};
    static const uint32_t chunk[2] = {3, 7};
    uint64_t seen = 0;
    Gptoss__Row rows[SLOTS];
    uint32_t blocks[SLOTS][CONTEXT / BLOCK_TOKENS];
    uint32_t who[4096][SLOTS], n_rows[4096];
    bring_up(ranks);
    for (;;) {
        /* The second one begins while the first is being answered. */
        while (it.steps - seen < IN_FLIGHT) {
            uint32_t n = 0;
            for (uint32_t i = 0; i < 2; i++) {
                struct sequence *s = &sequences[i];
                uint32_t left = s->issued < s->n_prompt ? s->n_prompt - s->issued : 1;
                if (s->issued - s->n_prompt + 1 == TOKENS || (i == 1 && it.steps < 9))
                    continue;
                who[it.steps + 1][n] = i;
                fill_row(&rows[n], blocks[n], s, left < chunk[i] ? left : chunk[i]);
                n++;
            }
            if (n == 0)
                break;
            n_rows[it.steps + 1] = n;
            send_step(rows, n);
        }
        if (seen == it.steps)
            break;
        Gptoss__RankMessage *m = hear_of(GPTOSS__RANK_MESSAGE__BODY_RESULT);
        assert_int_equal(m->epoch, EPOCH);
        assert_int_equal(m->result->step, ++seen);
        assert_string_equal(m->result->error, "");
        for (size_t i = 0; i < m->result->n_samples; i++) {
            assert_true(m->result->samples[i]->row < n_rows[seen]);
            check_sample(&sequences[who[seen][m->result->samples[i]->row]], m->result->samples[i]);
        }
        proto_free(&m->base);
    }
    assert_int_equal(sequences[0].received, TOKENS);
    assert_int_equal(sequences[1].received, TOKENS);
    shut_down();
    says(log_text(), "of 24");
}

static void one_rank_without_mpirun_gives_the_golden_tokens(void **state)
{
    (void)state;
    two_sequences(1);
}

static void two_ranks_give_the_golden_tokens(void **state)
{
    (void)state;
    two_sequences(2);
}

static void four_ranks_give_the_golden_tokens(void **state)
{
    (void)state;
    two_sequences(4);
}

static void ranks_that_share_the_head_give_the_golden_tokens(void **state)
{
    (void)state;
    it.cut = true;
    two_sequences(3); /* 1, 1 and 2 blocks of 1,024 ids */
}

static void a_step_of_another_epoch_is_dropped(void **state)
{
    (void)state;
    struct sequence s = golden("genesis", 1);
    Gptoss__Row row;
    uint32_t blocks[CONTEXT / BLOCK_TOKENS];
    bring_up(2);
    Gptoss__Step stale = GPTOSS__STEP__INIT;
    stale.step = 1;
    MESSAGE(&stale, STEP, step);
    message.epoch = EPOCH - 1;
    tell(0, &message);
    fill_row(&row, blocks, &s, s.n_prompt);
    send_step(&row, 1);
    Gptoss__RankMessage *m = hear_of(GPTOSS__RANK_MESSAGE__BODY_RESULT);
    assert_string_equal(m->result->error, "");
    assert_int_equal(m->result->n_samples, 1);
    check_sample(&s, m->result->samples[0]);
    proto_free(&m->base);
    shut_down();
}

static void a_shutdown_with_steps_under_way_ends_all_ranks_with_0(void **state)
{
    (void)state;
    struct sequence s = golden("genesis", 1);
    Gptoss__Row row;
    uint32_t blocks[CONTEXT / BLOCK_TOKENS];
    bring_up(4);
    for (int i = 0; i < IN_FLIGHT; i++) {
        fill_row(&row, blocks, &s, i ? 1 : s.n_prompt);
        send_step(&row, 1);
    }
    shut_down();
}

static void every_rank_says_all_the_time_that_it_is_there(void **state)
{
    (void)state;
    uint32_t beats[2] = {0}, echoes[2] = {0};
    bring_up(2);
    double end = now() + 1.5;
    while (now() < end) {
        Gptoss__RankMessage *m = hear_of(GPTOSS__RANK_MESSAGE__BODY_HEARTBEAT);
        assert_true(m->heartbeat->rank < 2 && m->heartbeat->up_seconds > 0);
        assert_true(m->heartbeat->world == it.world && m->heartbeat->quiet_ms < 1000);
        beats[m->heartbeat->rank]++;
        const Gptoss__RankHeartbeat *b = m->heartbeat;
        if (b->echo_us) { /* ours, and when it came and the answer left: here by one clock */
            assert_true(b->echo_us <= b->echo_received_us);
            assert_true(b->echo_received_us <= b->echo_sent_us);
            assert_true(b->echo_sent_us <= (uint64_t)(now() * 1e6) + 1);
            echoes[b->rank]++;
        }
        proto_free(&m->base);
    }
    assert_in_range(beats[0], 5, 12);
    assert_in_range(beats[1], 5, 12);
    assert_true(echoes[0] && echoes[1]);
    shut_down();
}

/* Steps one after another: so a step is on one stage at a time, and the clocks are one. */
static void every_step_leaves_its_times_on_every_stage(void **state)
{
    (void)state;
    enum { RANKS = 3, STEPS = 12 };
    static struct {
        uint64_t received, started, finished, sent;
    } seen[RANKS][STEPS + 1];
    struct sequence s = golden("genesis", 1);
    Gptoss__Row row;
    uint32_t blocks[CONTEXT / BLOCK_TOKENS], told = 0;
    uint64_t busy[RANKS] = {0};
    memset(seen, 0, sizeof seen);
    bring_up(RANKS);
    uint64_t begin = (uint64_t)(now() * 1e6) - 1;
    for (int i = 0; i < STEPS; i++) {
        fill_row(&row, blocks, &s, i ? 1 : s.n_prompt);
        send_step(&row, 1);
        for (bool answered = false; !answered || (i + 1 == STEPS && told < RANKS * STEPS);) {
            Gptoss__RankMessage *m = hear(20);
            answered |= m->body_case == GPTOSS__RANK_MESSAGE__BODY_RESULT;
            uint32_t stage = 0;
            const Gptoss__StepTimes *t = m->step_times;
            bool times = m->body_case == GPTOSS__RANK_MESSAGE__BODY_STEP_TIMES;
            while (times && it.peers[stage].size + 1 &&
                   memcmp(it.peers[stage].id, it.frame.peer, it.frame.peer_size) != 0)
                stage++;
            assert_true(stage < RANKS);
            uint64_t at = times ? t->origin_us : 0;
            for (size_t k = 0; times && k < t->n_received; k++, told++) {
                uint64_t step = t->first_step + k;
                assert_true(step >= 1 && step <= STEPS && seen[stage][step].sent == 0);
                seen[stage][step].received = at += t->received[k];
                seen[stage][step].started = at + t->started[k];
                seen[stage][step].finished = at + t->started[k] + t->finished[k];
                seen[stage][step].sent = at + t->started[k] + t->finished[k] + t->sent[k];
                busy[stage] += t->busy[k];
                assert_true(t->busy[k] > 0);
            }
            proto_free(&m->base);
        }
    }
    uint64_t end = (uint64_t)(now() * 1e6) + 1;
    for (int step = 1; step <= STEPS; step++)
        for (int r = 0; r < RANKS; r++) {
            assert_true(seen[r][step].received > begin && seen[r][step].sent < end);
            if (r)
                assert_true(seen[r][step].started >= seen[r - 1][step].finished);
            else if (step > 1)
                assert_true(seen[0][step].received >= seen[RANKS - 1][step - 1].finished);
        }
    for (int r = 0; r < RANKS; r++)
        assert_true(busy[r] < end - begin);
    shut_down();
}

static void nobody_there_is_exit_code_5_and_says_what_to_start(void **state)
{
    (void)state;
    for (uint32_t ranks = 1; ranks <= 2; ranks++) {
        start(ranks, "ipc:///tmp/gptoss-test-nobody", "0.4");
        assert_int_equal(ended(15), 5);
        says(log_text(), "no coordinator at ipc:///tmp/gptoss-test-nobody: start one with "
                         "gptoss-coordinator --model FILE");
    }
}

static void a_refused_rank_says_why_and_exits_with_1(void **state)
{
    (void)state;
    start(2, it.endpoint, "20");
    hear_hellos();
    Gptoss__RankRefused refused = GPTOSS__RANK_REFUSED__INIT;
    refused.text = (char *)"another world is here";
    MESSAGE(&refused, REFUSED, refused);
    message.epoch = 0;
    tell(0, &message);
    tell(1, &message);
    assert_int_equal(ended(15), 1);
    says(log_text(), "another world is here");
}

static void a_model_file_that_is_not_there_is_exit_code_3(void **state)
{
    (void)state;
    start(2, it.endpoint, "20");
    hear_hellos();
    welcome("/nowhere/model.gguf");
    Gptoss__RankMessage *m = hear_failure();
    says(m->failed->text, "/nowhere/model.gguf");
    proto_free(&m->base);
    assert_int_equal(ended(15), 3);
}

static void a_plan_of_another_mode_than_the_rank_joined_with_is_refused(void **state)
{
    (void)state;
    it.fast = true;
    start(1, it.endpoint, "20");
    hear_hellos();
    welcome(MODEL);
    Gptoss__RankMessage *m = hear_of(GPTOSS__RANK_MESSAGE__BODY_JOIN);
    assert_true(m->join->fast);
    says(m->join->device, "fast");
    proto_free(&m->base);
    plan(0);
    m = hear_failure();
    says(m->failed->text, "all ranks of a run have one mode");
    proto_free(&m->base);
    assert_int_equal(ended(15), 6);
}

/* Fills in `row`, lets the case spoil it, and sees what stage 0 says of it. */
static void refused_step(void (*spoil)(Gptoss__Row *row), const char *what)
{
    struct sequence s = golden("genesis", 1);
    Gptoss__Row row;
    uint32_t blocks[CONTEXT / BLOCK_TOKENS];
    bring_up(2);
    fill_row(&row, blocks, &s, s.n_prompt);
    spoil(&row);
    send_step(&row, 1);
    Gptoss__RankMessage *m = hear_of(GPTOSS__RANK_MESSAGE__BODY_RESULT);
    assert_int_equal(m->result->step, 1);
    says(m->result->error, what);
    proto_free(&m->base);
    m = hear_failure();
    says(m->failed->text, what);
    proto_free(&m->base);
    assert_int_equal(ended(15), 1);
}

static void name_a_slot_that_is_not_there(Gptoss__Row *row)
{
    row->slot = SLOTS;
}

static void a_step_that_breaks_a_bound_is_answered_and_ends_the_ranks(void **state)
{
    (void)state;
    refused_step(name_a_slot_that_is_not_there, "step 1, row 0: no such slot (4)");
}

static void refer_to_nothing(Gptoss__Row *row)
{
    row->n_tokens = 0;
    row->count = 1;
    row->sample_from = 0;
    row->restart = 0;
}

static void a_reference_to_what_was_never_sampled_is_refused(void **state)
{
    (void)state;
    refused_step(refer_to_nothing, "no token has been sampled for slot 1 yet");
}

/* The process that is rank `rank`, among mpirun's children. */
static pid_t rank_pid(uint32_t rank)
{
    char path[64], variable[64], environment[65536];
    pid_t found = 0;
    int pid;
    snprintf(variable, sizeof variable, "OMPI_COMM_WORLD_RANK=%u", rank);
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", it.pid, it.pid);
    FILE *children = fopen(path, "r");
    assert_non_null(children);
    while (!found && fscanf(children, "%d", &pid) == 1) {
        snprintf(path, sizeof path, "/proc/%d/environ", pid);
        FILE *file = fopen(path, "r");
        size_t size = file ? fread(environment, 1, sizeof environment - 1, file) : 0;
        environment[size] = 0;
        for (char *at = environment; at < environment + size; at += strlen(at) + 1)
            if (strcmp(at, variable) == 0)
                found = pid;
        if (file)
            fclose(file);
    }
    fclose(children);
    assert_true(found > 0);
    return found;
}

static void a_rank_that_hangs_is_named_by_the_one_that_waits(void **state)
{
    (void)state;
    struct sequence s = golden("genesis", 1);
    Gptoss__Row row;
    uint32_t blocks[CONTEXT / BLOCK_TOKENS];
    it.deadline_ms = 700;
    bring_up(2);
    kill(rank_pid(1), SIGSTOP);
    fill_row(&row, blocks, &s, s.n_prompt);
    send_step(&row, 1);
    Gptoss__RankMessage *m = hear_failure();
    assert_int_equal(m->failed->rank, 0);
    says(m->failed->text, "stage 0 waited ");
    says(m->failed->text, " stage 1 (rank 1 on host "); /* to take activations, or for tokens */
    says(m->failed->text, " of step 1");
    proto_free(&m->base);
    assert_int_equal(ended(15), 6);
}

static void a_silent_coordinator_is_lost_after_10_seconds(void **state)
{
    (void)state;
    bring_up(2);
    double begin = now();
    assert_int_equal(ended(20), 5);
    assert_true(now() - begin > 8);
    says(log_text(), "coordinator lost: nothing heard from ipc://");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(int argc, char **argv)
{
    const struct CMUnitTest pipeline[] = {
        CASE(one_rank_without_mpirun_gives_the_golden_tokens),
        CASE(two_ranks_give_the_golden_tokens),
        CASE(four_ranks_give_the_golden_tokens),
        CASE(ranks_that_share_the_head_give_the_golden_tokens),
        CASE(a_step_of_another_epoch_is_dropped),
        CASE(a_shutdown_with_steps_under_way_ends_all_ranks_with_0),
        CASE(every_rank_says_all_the_time_that_it_is_there),
        CASE(every_step_leaves_its_times_on_every_stage),
    };
    const struct CMUnitTest refusals[] = {
        CASE(nobody_there_is_exit_code_5_and_says_what_to_start),
        CASE(a_refused_rank_says_why_and_exits_with_1),
        CASE(a_model_file_that_is_not_there_is_exit_code_3),
        CASE(a_plan_of_another_mode_than_the_rank_joined_with_is_refused),
        CASE(a_step_that_breaks_a_bound_is_answered_and_ends_the_ranks),
        CASE(a_reference_to_what_was_never_sampled_is_refused),
        CASE(a_rank_that_hangs_is_named_by_the_one_that_waits),
    };
    const struct CMUnitTest silence[] = {
        CASE(a_silent_coordinator_is_lost_after_10_seconds),
    };
    const char *group = argc > 1 ? argv[1] : "";
    if (strcmp(group, "pipeline") == 0)
        return cmocka_run_group_tests(pipeline, NULL, NULL);
    if (strcmp(group, "refusals") == 0)
        return cmocka_run_group_tests(refusals, NULL, NULL);
    if (strcmp(group, "silence") == 0)
        return cmocka_run_group_tests(silence, NULL, NULL);
    fprintf(stderr, "usage: test_worker pipeline|refusals|silence\n");
    return 2;
}
