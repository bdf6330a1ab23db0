/* The page, as bytes: made of page.html by page.cmake. */
#ifndef GPTOSS_CLIENT_GATEWAY_PAGE_H
#define GPTOSS_CLIENT_GATEWAY_PAGE_H

#include <stddef.h>

extern const unsigned char page_html[];
extern const size_t page_html_size;

#endif
