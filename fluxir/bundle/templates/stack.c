/* The lowest address that this thread's frames may reach, with some way to go for what they call; null where unknown. */
static void *stack_limit(void)
{
    pthread_attr_t attributes;
    void *low = NULL;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &attributes)) return NULL;
    pthread_attr_getstack(&attributes, &low, &size);
    pthread_attr_destroy(&attributes);
    return (char *)low + (size / 3 < (768u << 10) ? size / 3 : (768u << 10));
}

