FROM base
RUN --mount=type=secret,id=aws,target=/root/.aws/credentials \
    --mount=type=secret,id=npm,env=NPM_TOKEN,required=true \
    --mount=type=secret,source=plain \
    --mount=type=secret,id=both,env=BOTH,target=/run/both,uid=1000,gid=1000,mode=0440 \
    aws s3 ls
RUN --mount=type=ssh --mount=type=ssh,id=deploy,target=/run/agent.sock,required,mode=0660 git clone git@example.com:a/b
