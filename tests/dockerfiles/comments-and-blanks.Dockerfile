
   # indented comment
FROM   base    AS   one
	# a tab before
RUN echo one \
    # inside
    && echo two \

    && echo three # not a comment
RUN echo "a \
b" \
&& true

  RUN   indented
CMD   [ "a" ,"b"]
