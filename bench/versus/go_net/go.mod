module versus/go_net

go 1.21
