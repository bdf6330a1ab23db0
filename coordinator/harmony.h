/*
 * harmony: the chat format of gpt-oss, both ways.
 *
 * Rendering turns a chat into parts: special tokens and texts, in the order of OpenAI's library (its
 * rules, not the Jinja template of the file). Texts are tokenised one by one, so a user's text can
 * never become a special token. Parsing turns sampled tokens into pieces of text with a channel and a
 * recipient; every sequence of tokens has a meaning, malformed headers included, and no text is lost.
 *
 * Pure. Sources: openai/harmony docs/format.md and src/encoding.rs; see docs/model.md.
 */
#ifndef GPTOSS_COORDINATOR_HARMONY_H
#define GPTOSS_COORDINATOR_HARMONY_H

#include "coordinator/tokenizer.h"
#include "proto/proto.h"

/* ── rendering ─────────────────────────────────────────────────────────────────────────────── */

/* A prompt in parts: id ≥ 0 is a special token; id < 0 is text[first … first + size) of `text`. */
struct prompt_part {
    int64_t id;
    size_t first, size;
};
struct prompt {
    struct text text; /* well-formed UTF-8 */
    struct prompt_part *parts;
    size_t n_parts, parts_capacity;
    size_t part, position; /* how far prompt_encode came */
};
void prompt_free(struct prompt *p);
/* Raw text: one part, cleaned. */
void prompt_from_text(struct prompt *p, const void *bytes, size_t size);
/* Tokenises on, as tokenizer_encode: 1 done, 0 call again. */
int prompt_encode(struct prompt *p, const struct tokenizer *t, size_t budget, struct tokens *out);

/* Renders a chat into *p (zero-initialised), ready for the model's answer: it ends with
 * <|start|>assistant, or with the head of a final message and the assistant_prefix.
 * *start tells the parser where the model goes on.
 *  - system message: identity, knowledge cutoff, date if given, reasoning, channels, the line about
 *    function tools if there are any
 *  - SYSTEM messages, in order, joined by a blank line, become the developer message's instructions,
 *    tools its "# Tools" section; no such message if both are absent
 *  - analysis of turns that ended in a final message is dropped; that of the current turn is kept
 *  - with a tool_choice it ends with the head of a call, or the beginning of one: the parser has to be
 *    told (harmony_parser_choose)
 * -1 and a sentence for tools that are not JSON in OpenAI's form, a date that is none, roles or
 * channels that make no sense, a tokenizer without harmony's special tokens, no message at all. */
enum harmony_start { HARMONY_START_HEADER, HARMONY_START_FINAL, HARMONY_START_RAW };
int harmony_render(struct prompt *p, const struct tokenizer *t, const Gptoss__Chat *chat,
                   enum harmony_start *start, char *err, size_t err_size);

/* ── parsing ───────────────────────────────────────────────────────────────────────────────── */

struct harmony_parser;

/* One stretch of text. `channel` is a Gptoss__Piece__Channel. */
struct harmony_piece {
    Gptoss__Piece__Channel channel;
    const char *recipient; /* "functions.NAME" or ""; valid while the parser lives */
    const char *text;      /* UTF-8, whole characters; valid until the next call */
    size_t size;
    uint32_t message;
};
typedef void (*harmony_sink)(void *arg, const struct harmony_piece *piece);

/* RAW: every token's text is a piece of channel RAW, special tokens by their names.
 * HEADER: after <|start|>assistant. FINAL: inside the content of a final message. */
struct harmony_parser *harmony_parser_create(const struct tokenizer *t, enum harmony_start start);
/* After HEADER: the prompt ends with what the chat's tool_choice makes the model call. */
void harmony_parser_choose(struct harmony_parser *p, const char *tool_choice);
void harmony_parser_destroy(struct harmony_parser *p); /* NULL is fine */
/* The pieces that became certain with this token, in order. */
void harmony_parser_add(struct harmony_parser *p, uint32_t id, harmony_sink sink, void *arg);
/* The end of the tokens, wherever it is: what is held back, and a header that never got its
 * <|message|>, comes out. */
void harmony_parser_end(struct harmony_parser *p, harmony_sink sink, void *arg);

/* Whether the last token ended a message with <|call|>, or whether any message so far called a tool
 * and was ended. */
bool harmony_parser_called(const struct harmony_parser *p);
/* Tokens so far that were analysis: header, content and end of analysis messages. */
uint32_t harmony_parser_reasoning_tokens(const struct harmony_parser *p);

#endif
