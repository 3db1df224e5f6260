cat >> postgresql.conf << 'END'
listen_addresses = ''
unix_socket_directories = '/tmp'
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 16MB
min_wal_size = 4MB
max_wal_size = 12MB
checkpoint_timeout = 30s
autovacuum_naptime = 15s
max_connections = 8
max_parallel_workers = 0
jit = off
timezone = 'GMT'
END
