# SeaweedFS with a data folder that an unprivileged user may write to: a named volume takes over the
# owner of the folder that it is mounted on, and /data of the base image may be root's.
FROM chrislusf/seaweedfs:4.48

USER 0
RUN mkdir /store && chown 1000:1000 /store
USER 1000:1000
WORKDIR /store
VOLUME /store
ENTRYPOINT ["/usr/bin/weed"]
