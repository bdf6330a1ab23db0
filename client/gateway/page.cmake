# Makes a C array of a file: cmake -DIN=FILE -DOUT=FILE.c -P page.cmake
file(READ ${IN} bytes HEX)
string(LENGTH "${bytes}" size)
math(EXPR size "${size} / 2")
string(REGEX REPLACE "(................................)" "\\1\n" bytes "${bytes}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${bytes}")
file(WRITE ${OUT} "#include \"client/gateway/page.h\"\n\nconst unsigned char page_html[] = {\n${bytes}};\nconst size_t page_html_size = ${size};\n")
